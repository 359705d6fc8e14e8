"""Records become pages and tables for people.

Plain records come in, HTML, Markdown, CSV and Parquet go out. It imports nothing else of Rondo.
"""
