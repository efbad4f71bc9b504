"""Crash safety, shown by killing: the service as a process over a real port, SIGKILL, and an audit of what is left.

steps     every named step at which it is killed, what the request was, and what must remain: one table
service   `smart-assets serve`, dying at the step that the environment names
process   such processes: started, armed, killed
ledger    what callers asked for and were told
callers   requests, written down in the ledger as they are answered, or not
scenes    the requests in which the steps lie
audit     what lies in the catalogue and the storage, read without the service's code, against the ledger
places    where objects lie: a folder; with `bucket`, an S3 server of our own
harness   playing a step, or a random kill: start, work, kill, wait, audit
"""
