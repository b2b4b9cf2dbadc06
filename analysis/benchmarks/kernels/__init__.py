"""lorsum beside its competitors and the machine's roofline."""
