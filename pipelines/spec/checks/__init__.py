"""What can be known before anything heavy starts, each check in one file.

Valid sections of a spec come in, faults and notes go out. It imports ``spec`` and no plan.
"""
