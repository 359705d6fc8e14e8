"""How well a judge agrees with people: pairs that people have judged, put before a judge, and what comes of it."""
