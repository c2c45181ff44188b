"""Idempotency keys: a request that is sent again, because its sender was not sure, does nothing twice.

squall run examples/pay_once.py
"""

import squall

app = squall.App("pay-once")


@app.cls(max_containers=1)
class Bank:
    """Stands in for the one who moves the money."""

    @squall.enter()
    def open(self) -> None:
        self.booked: list[int] = []

    @squall.method()
    def charge(self, cents: int) -> int:
        self.booked.append(cents)
        return len(self.booked)

    @squall.method()
    def total(self) -> int:
        return sum(self.booked)


@app.function()
def pay(order: str, cents: int) -> str:
    number = Bank().charge.remote(cents)
    return f"{order}: {cents / 100:.2f}, booking {number}"


@app.local_entrypoint()
def main() -> None:
    # The key names what must happen once, here an order. It is remembered for 24 hours.
    for order, cents in (("order-1", 1999), ("order-2", 500)):
        once = pay.with_idempotency_key(order)
        first = once.spawn(order, cents)
        again = once.spawn(order, cents)  # a double click, a lost answer, a restarted program
        print(again.get(timeout=30), "- one call:", first.object_id == again.object_id)
    try:
        pay.with_idempotency_key("order-1").remote("order-1", 1)
    except squall.exception.IdempotencyConflictError:
        print("order-1 was another payment")
    print(f"booked {Bank().total.remote() / 100:.2f}")
