"""What uploads to S3 are measured against: bare `put_object` calls of boto3, as many at a time as there are threads.

    python -m benchmarks.put_loop BUCKET ENDPOINT FILE THREADS

The account is in the environment, as boto3 expects it. Each line that is read is a number of seconds to go on for, and
answered by a line of JSON: `uploads`, and the `seconds` and `cpu_seconds` they took together.
"""

from __future__ import annotations

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

from boto3.session import Session
from botocore.config import Config


def put_for(client: Any, bucket: str, content: bytes, until: float) -> int:
    """How many objects were put until then. What is under way at that moment counts no more than wrk counts it."""
    count = 0
    while True:
        client.put_object(Bucket=bucket, Key=f"loop/{uuid4()}.jpg", Body=content, ContentType="image/jpeg")
        if time.perf_counter() > until:
            return count
        count += 1


def main() -> None:
    """Until there are no more orders."""
    bucket, endpoint, file, threads = sys.argv[1:]
    content, workers = Path(file).read_bytes(), int(threads)
    # A connection for each thread; and what S3-compatible servers ask for: no checksum that the call does not need.
    config = Config(  # type: ignore[no-untyped-call]
        max_pool_connections=workers,
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={"addressing_style": "path"},
    )
    client = Session().client("s3", "us-east-1", endpoint_url=endpoint, config=config)  # type: ignore[no-untyped-call]
    with ThreadPoolExecutor(workers) as pool:
        for line in sys.stdin:
            cpu, seconds = time.process_time(), float(line)
            until = time.perf_counter() + seconds
            puts = [pool.submit(put_for, client, bucket, content, until) for _ in range(workers)]
            time.sleep(seconds)
            took = {"seconds": seconds, "cpu_seconds": time.process_time() - cpu}
            sys.stdout.write(json.dumps({"uploads": sum(put.result() for put in puts), **took}) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
