"""What the formats share: headers, limits, shards, seals."""
