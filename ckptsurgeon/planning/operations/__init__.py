"""Operations (split, concat, transpose, …) that change a source's tensors before rules select and rename them."""
