"""Make the bucket of MLFLOW_ARTIFACTS_DESTINATION where it is missing, once the object store answers."""

import os
import sys
import time
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

PATIENCE = 300.0  # seconds


def main() -> None:
    """Exit with 1 and the store's own words where it refuses, or does not answer in time."""
    bucket, endpoint = urlsplit(os.environ["MLFLOW_ARTIFACTS_DESTINATION"]).netloc, os.environ["MLFLOW_S3_ENDPOINT_URL"]
    store = boto3.client("s3", endpoint_url=endpoint, config=Config(connect_timeout=5, retries={"max_attempts": 1}))
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            if bucket not in {entry["Name"] for entry in store.list_buckets()["Buckets"]}:
                store.create_bucket(Bucket=bucket)
            break
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] < 500:
                sys.exit(f"{endpoint}: refuses ({error}); its keys are those of the Secret object-store")
            problem = str(error)
        except BotoCoreError as error:
            problem = str(error)
        if time.monotonic() > deadline:
            sys.exit(f"{endpoint}: does not answer ({problem}); is the pod of object-store ready?")
        print(f"{endpoint}: not yet ({problem})", flush=True)
        time.sleep(2)
    print(f"{endpoint}: the bucket {bucket} is there")


if __name__ == "__main__":
    main()
