"""The built-in decoder, on one device."""
