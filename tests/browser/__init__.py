"""The page and the SDK in a real browser. Not part of `make test`: `make test-web` installs what they need."""
