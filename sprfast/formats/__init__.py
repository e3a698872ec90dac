"""Every file that sprfast writes, and its checks. Imports `method` and what lies below."""
