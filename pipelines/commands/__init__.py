"""The commands of ``rondo``, a file each, and what they share.

Arguments come in, a plan is made and run or shown, an exit code goes out. It imports all other rooms here.
"""
