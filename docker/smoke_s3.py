"""What the bucket must have after the smoke sweep. Runs in a container of the stack, where the keys are."""

from collections import Counter

import boto3

pages = boto3.client("s3").get_paginator("list_objects_v2").paginate(Bucket="mcc")
keys = [entry["Key"] for page in pages for entry in page.get("Contents", ())]
kinds = Counter(key.split("/")[3] for key in keys if key.startswith("mcc/trials/") and key.count("/") >= 4)
trials = {key.split("/")[2] for key in keys if key.startswith("mcc/trials/")}
checkpoints = {key.split("/")[2] for key in keys if "/checkpoints/" in key and key.endswith(".pt")}
assert len(trials) == 7 and checkpoints == trials, (trials, checkpoints)
assert kinds["events"] and any(key.startswith("mlflow/") for key in keys), kinds
print(f"         S3: {len(keys)} objects; of trials {dict(kinds)}")
