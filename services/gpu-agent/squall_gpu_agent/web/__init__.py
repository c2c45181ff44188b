"""Web requests on this machine: from gateways' connections to connections that containers offer."""
