"""Images as content-addressed uv environments: pure step keys, and the adapter that makes them. Used by builder and
agent.
"""
