"""Where clips with truth come from: the synthetic generator and dataset adapters."""
