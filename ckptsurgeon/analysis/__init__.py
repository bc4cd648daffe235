"""What a checkpoint or an output is: inspected, compared, matched, scanned, verified, explained, shown as a page."""
