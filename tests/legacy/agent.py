#!/usr/bin/env python3
"""An agent in the shape of the predecessor's: pydantic models with required fields, and httpx.

It sends heartbeats, polls, acknowledges every assignment without doing anything, and ends when the sync
that it watches has ended. It prints one JSON document: what it received, and the last progress. A document
of the master that does not fit its models ends it with the error of pydantic and exit code 1.

Runs with version 1 and 2 of pydantic.
"""

import argparse
import json
import sys
import time
from datetime import datetime, timezone
from enum import Enum
from typing import Any, Dict, List, Optional

import httpx
import pydantic


class WorkerStatus(str, Enum):
    READY = "READY"
    TRANSFERRING = "TRANSFERRING"


class DataPlaneEndpoint(pydantic.BaseModel):
    iface: str
    address: str


class WorkerHeartbeat(pydantic.BaseModel):
    worker_id: str
    timestamp: str
    status: WorkerStatus
    control_plane_address: str
    storage_paths: List[str]
    data_plane_endpoints: List[DataPlaneEndpoint]


class Assignment(pydantic.BaseModel):
    request_id: str
    worker_id: str
    source_path: str
    destination_path: str
    chunk_offset: int
    chunk_size: int
    source_worker_pool: List[str]
    destination_worker_pool: List[str]


class SyncResult(pydantic.BaseModel):
    request_id: str
    worker_id: str
    success: bool
    message: str


class SyncProgress(pydantic.BaseModel):
    request_id: str
    state: str
    transferred_bytes: int
    total_bytes: int
    started_at: Optional[datetime]
    updated_at: datetime
    detail: Dict[str, str]


class WorkerView(pydantic.BaseModel):
    worker_id: str
    status: str
    storage_paths: List[str]


def document(model: pydantic.BaseModel) -> Dict[str, Any]:
    return json.loads(model.model_dump_json() if hasattr(model, "model_dump_json") else model.json())


class Agent:
    def __init__(self, client: httpx.Client, worker_id: str, storage: List[str]) -> None:
        self.client = client
        self.worker_id = worker_id
        self.storage = storage

    def get(self, path: str) -> Any:
        response = self.client.get(path)
        response.raise_for_status()
        return response.json()

    def post(self, path: str, model: Optional[pydantic.BaseModel] = None) -> Any:
        body = None if model is None else document(model)
        response = self.client.post(path, json=body) if body else self.client.post(path)
        response.raise_for_status()
        return response.json()

    def heartbeat(self, status: WorkerStatus) -> None:
        beat = WorkerHeartbeat(
            worker_id=self.worker_id,
            timestamp=datetime.now(timezone.utc).isoformat(),
            status=status,
            control_plane_address="127.0.0.1",
            storage_paths=self.storage,
            data_plane_endpoints=[DataPlaneEndpoint(iface="lo", address="127.0.0.1")],
        )
        assert self.post("/workers/heartbeat", beat) == {"status": "ok"}

    def poll(self) -> Optional[Dict[str, Any]]:
        got = self.post(f"/workers/{self.worker_id}/assignment")
        if got is None:
            return None
        assignment = Assignment(**got)
        assert assignment.worker_id == self.worker_id
        return got

    def acknowledge(self, request_id: str) -> None:
        result = SyncResult(
            request_id=request_id, worker_id=self.worker_id, success=True, message="chunk complete"
        )
        assert self.post("/workers/result", result) == {"status": "ack"}

    def working_on(self) -> List[str]:
        view = WorkerView(**self.get(f"/workers/{self.worker_id}"))
        assert view.worker_id == self.worker_id
        return self.get(f"/workers/{self.worker_id}/requests")

    def progress(self, request_id: str) -> Dict[str, Any]:
        got = self.get(f"/sync/{request_id}")
        SyncProgress(**got)
        return got


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--master", required=True)
    parser.add_argument("--worker-id", required=True)
    parser.add_argument("--storage", action="append", required=True)
    parser.add_argument("--watch", required=True, help="the request id of the sync")
    args = parser.parse_args()
    with httpx.Client(base_url=args.master, timeout=30, trust_env=False) as client:
        agent = Agent(client, args.worker_id, args.storage)
        assert agent.get("/livez") == {"status": "ok"}
        assignments: List[Dict[str, Any]] = []
        deadline = time.monotonic() + 120
        while True:
            agent.heartbeat(WorkerStatus.READY)
            assignment = agent.poll()
            if assignment is not None:
                agent.heartbeat(WorkerStatus.TRANSFERRING)
                assert agent.working_on() == [assignment["request_id"]]
                assignments.append(assignment)
                agent.acknowledge(assignment["request_id"])
            progress = agent.progress(args.watch)
            if progress["state"] in ("COMPLETED", "FAILED", "CANCELLED"):
                break
            assert time.monotonic() < deadline, f"the sync does not end: {progress}"
        assert agent.working_on() == []
        json.dump({"assignments": assignments, "progress": progress}, sys.stdout)


if __name__ == "__main__":
    main()
