"""Shows results as text: rich renderables, aligned. Reads results and decides nothing."""
