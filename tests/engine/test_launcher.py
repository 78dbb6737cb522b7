"""The process of a run as the variables of torchrun and srun describe it."""

import pytest

from rpe_d2.engine.launcher import (
    Process,
    check_meeting_point,
    first_host,
    process_of_cluster,
)

TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "none",
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
}
SRUN = {
    "SLURM_JOB_ID": "12",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
}


def test_torchrun():
    assert process_of_cluster(TORCHRUN) == Process(5, 8, 1, 4, "env://")
    assert process_of_cluster({**TORCHRUN, "WORLD_SIZE": "1", "RANK": "0"}) is None


def test_srun():
    process = process_of_cluster(SRUN)
    assert process == Process(5, 8, 1, 4, process.init_method)
    host, port = process.init_method.removeprefix("tcp://").split(":")
    assert host == "gpu07" and 20000 <= int(port) < 40000
    # all processes of a step meet at one port, another step at another
    assert process_of_cluster({**SRUN, "SLURM_PROCID": "0"}).init_method == process.init_method
    assert process_of_cluster({**SRUN, "SLURM_STEP_ID": "1"}).init_method != process.init_method
    chosen = {**SRUN, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "1234"}
    assert process_of_cluster(chosen).init_method == "tcp://10.0.0.1:1234"


def test_single_processes_and_batch_scripts():
    assert process_of_cluster({}) is None
    # the script of a job with 8 tasks is not one of the tasks
    batch = {"SLURM_JOB_ID": "12", "SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    assert process_of_cluster(batch) is None
    assert process_of_cluster({**SRUN, "SLURM_STEP_NUM_TASKS": "1"}) is None


def test_srun_with_unequal_machines():
    with pytest.raises(ValueError, match="SLURM_STEP_TASKS_PER_NODE is 2,1; allowed: as many"):
        process_of_cluster({**SRUN, "SLURM_STEP_TASKS_PER_NODE": "2,1"})


@pytest.mark.parametrize(
    "nodes, host",
    [
        ("node1", "node1"),
        ("node1,node2", "node1"),
        ("gpu[07-09]", "gpu07"),
        ("gpu[3,7-9],cpu1", "gpu3"),
        ("rack2-n[010-020]", "rack2-n010"),
        ("n[1-3]-ib0,x", "n1-ib0"),
        ("a-b.c.org", "a-b.c.org"),
    ],
)
def test_first_host(nodes, host):
    assert first_host(nodes) == host


@pytest.mark.parametrize(
    "url", ["auto", "tcp://127.0.0.1:1234", "tcp://localhost:1", "tcp://[::1]:1"]
)
def test_several_machines_need_an_address_to_meet_at(url):
    with pytest.raises(ValueError, match="--num-machines 2 give the first machine's address"):
        check_meeting_point(2, url)
    check_meeting_point(1, url)
    check_meeting_point(2, "tcp://10.0.0.1:1234")
