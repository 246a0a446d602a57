"""The process that steers a training run: its loop, what it is built from, what it reports."""
