"""Results for people: rich renderables, aligned and quiet. Reads results, decides nothing."""
