"""Many byte ranges at once, from servers or disks into files, each file hashed in order as its pieces land.

    FileJob (what, from where, to where) ──► pump: workers fetch pieces ──► write at the final offset ──► hash in order

One write for each byte, no temporary copies. Nothing here knows tars, manifests or what a URL means.
"""
