"""Why a tensor of a plan is what it is, and what else it could have been. Pure, from the plan and headers."""
