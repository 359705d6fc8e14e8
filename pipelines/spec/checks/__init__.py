"""What can be known before anything heavy starts, one file per check.

Valid sections of a spec come in, faults and notes go out. It imports ``spec``, not the plan.
"""
