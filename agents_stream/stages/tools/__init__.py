"""The tools that the gateway calls over HTTP: what they are, one call, and what a reply means."""
