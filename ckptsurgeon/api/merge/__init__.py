"""``merge``: merges models by a method, with arguments or with a recipe of mergekit."""
