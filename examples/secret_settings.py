"""Secrets: values that are in neither the code nor the image, and come to the containers that declare them.

    squall run examples/secret_settings.py

A secret of the server would be `squall.Secret.from_name("billing-api", required_keys=["BILLING_KEY"])`, made once with
`squall secret create billing-api BILLING_KEY=...`.
"""

import os

import squall

credentials = squall.Secret.from_dict({"BILLING_KEY": "sk-of-this-example", "REGION": "eu"})
app = squall.App("secret-settings", secrets=[squall.Secret.from_dict({"REGION": "us", "CURRENCY": "EUR"})])


@app.function(secrets=[credentials], env={"TIER": "free"})
def invoice(cents: int) -> str:
    """The function's secrets win over the app's; nothing but their length is shown."""
    key = os.environ["BILLING_KEY"]
    return f"{cents / 100:.2f} {os.environ['CURRENCY']} in {os.environ['REGION']}, with a key of {len(key)} characters"


@app.function()
def sees_key() -> bool:
    """It does not declare that secret."""
    return "BILLING_KEY" in os.environ


@app.local_entrypoint()
def main() -> None:
    """An invoice."""
    print(invoice.remote(1250))
    print("in another function:", sees_key.remote())
