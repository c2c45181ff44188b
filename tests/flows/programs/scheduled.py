"""Functions that are called by themselves."""

import squall

app = squall.App("scheduled")


@app.function(schedule=squall.Period(seconds=1))
def often(word: str = "tick") -> str:
    return word


@app.function(schedule=squall.Cron("0 6 * * *", timezone="Europe/Berlin"))
def daily() -> str:
    return "daily"
