"""What may become of a tensor whose shape or dtype differs from what the destination wants. Pure, without numpy."""
