"""Arguments of the verbs: opened, checked, and held in plans."""
