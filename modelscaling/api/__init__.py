"""The typed API: the one source of the CRD, of validation and of the resolved run."""
