"""bench-quota: does the quota hold, is all of it usable, how fast does it follow, and what do other rules do?"""
