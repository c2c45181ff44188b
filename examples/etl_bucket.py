"""Extract, transform, load, between folders of a bucket: orders that a shop has put there become one report a day.
Files that cannot be read are set aside in a folder of their own.

ETL_BUCKET=orders ETL_ENDPOINT=http://127.0.0.1:8333 squall run examples/etl_bucket.py   # keys: the secret etl-keys
"""

import csv
import os
from collections import Counter
from pathlib import Path

import squall

app = squall.App("etl-bucket")
bucket = squall.CloudBucketMount(
    os.environ.get("ETL_BUCKET", "orders"),
    bucket_endpoint_url=os.environ.get("ETL_ENDPOINT"),
    secret=squall.Secret.from_name("etl-keys"),
)
ORDERS = Path("/bucket")


@app.function(volumes={"/bucket": bucket})
def days() -> list[str]:
    """Folders of the bucket: one for each day."""
    return sorted(day.name for day in (ORDERS / "in").iterdir())


@app.function(volumes={"/bucket": bucket}, retries=2, timeout=60)
def report(day: str) -> str:
    """Only this day's objects are fetched. Running it twice makes the same objects."""
    sums, aside = Counter[str](), 0
    for path in sorted((ORDERS / "in" / day).glob("*.csv")):
        try:
            with open(path, newline="") as file:
                rows = [(row["customer"], round(float(row["amount"]) * 100)) for row in csv.DictReader(file)]
        except (ValueError, KeyError):
            (ORDERS / "aside" / day).mkdir(parents=True, exist_ok=True)
            (ORDERS / "aside" / day / path.name).write_bytes(path.read_bytes())
            aside += 1
            continue
        for customer, cents in rows:
            sums[customer] += cents
    (ORDERS / "out").mkdir(exist_ok=True)
    with open(ORDERS / "out" / f"{day}.csv", "w", newline="") as file:  # an object when this block has ended
        csv.writer(file).writerows(sorted((customer, f"{cents / 100:.2f}") for customer, cents in sums.items()))
    return f"{day}: {len(sums)} customers, {sum(sums.values()) / 100:.2f}; {aside} files set aside"


@app.local_entrypoint()
def main() -> None:
    """A line for each day."""
    for line in report.map(days.remote()):
        print(line)
