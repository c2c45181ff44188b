"""`squall.Cron` and `squall.Period`, for programs that import them from here."""

from squall.schedules import Cron, Period, Schedule

__all__ = ["Cron", "Period", "Schedule"]
