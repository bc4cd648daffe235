"""What several families of networks share: blocks, names and orders that more than one of their files describes."""
