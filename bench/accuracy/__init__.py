"""`sprfast study`: what each way of scoring is worth on labelled images, and what it costs."""
