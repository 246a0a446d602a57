"""``opd-ray check-teacher``: a live teacher held to the contract of every teacher."""
