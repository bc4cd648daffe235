"""Rule operations: what makes a source's tensors into others before any rule selects or renames them."""
