#!/usr/bin/env bash
# Calls the deployed app of http_service.py with curl. Needs SQUALL_SERVER_URL and SQUALL_TOKEN.
set -euo pipefail
api="$SQUALL_SERVER_URL/v1/apps/http-service/functions"
ask() { curl --silent --show-error --header "Authorization: Bearer $SQUALL_TOKEN" "$@"; }

# A call and its result.
ask "$api/total/call" --data '{"args": [[1.5, 2.5]], "kwargs": {"discount": 0.5}}' | sed 's/.*"result"://'
echo

# A method of a class; `parameters` are those of its constructor.
ask "$api/Greeter.greet/call" --data '{"args": ["Ada"], "parameters": {"language": "de"}}' | sed 's/.*"result"://'
echo

# A generator: a line for each item, as it is yielded.
ask --no-buffer "$api/countdown/call" --data '{"args": [3]}' | grep '"item"'

# In the background: the answer says where the result will be. The key makes a repeated request harmless.
output=$(ask "$api/total/spawn" --header "Idempotency-Key: order-$$" --data '{"args": [[10, 20]]}' |
    sed 's/.*"output":"\([^"]*\)".*/\1/')
ask "$SQUALL_SERVER_URL$output?wait=30" | sed 's/.*"result"://'
echo

# The function's own exception: 422, with its class, message and traceback.
ask --output /dev/null --write-out '%{http_code}\n' "$api/Greeter.greet/call" --data '{"args": [""]}'
