// SPDX-License-Identifier: Apache-2.0

/** What a driver prepares and releases for a workspace; a driver that has nothing to prepare need not have the calls. */
import { codeOf, holds, same } from "../../harness/conformance/finding.ts";
import { group } from "../../harness/conformance/check.ts";
import { isUp } from "../../harness/conformance/driver.ts";

const check = group("J Workspaces");

const workspace = () => `w-${crypto.randomUUID().slice(0, 8)}`;

check(
  "DC-99",
  "MUST",
  "EnsureWorkspace succeeds for a workspace that is there already, unless the driver does not have it at all",
  {
    source: "contract, EnsureWorkspace; gateway 0.0.112, compute/mod.rs:842",
    harm: "Credentials cannot be given to a workspace a second time.",
  },
  async (trial) => {
    const { driver } = trial;
    const name = workspace();
    trial.defer(async () => void (await codeOf(driver.deleteWorkspace(name))));
    const first = await codeOf(driver.ensureWorkspace(name));
    holds(["OK", "UNIMPLEMENTED"].includes(first), "OK or UNIMPLEMENTED", first);
    same("the second time", await codeOf(driver.ensureWorkspace(name)), first);
  },
);

check(
  "DC-100",
  "MUST",
  "DeleteWorkspace succeeds for a workspace that is gone or never was, unless the driver does not have it at all",
  {
    source: "contract, DeleteWorkspace; gateway 0.0.112, compute/mod.rs:859",
    harm: "Workspaces cannot be deleted, or not when an earlier attempt broke off.",
  },
  async ({ driver }) => {
    const name = workspace();
    const never = await codeOf(driver.deleteWorkspace(name));
    holds(["OK", "UNIMPLEMENTED"].includes(never), "OK or UNIMPLEMENTED", never);
    await codeOf(driver.ensureWorkspace(name));
    same("one that was ensured", await codeOf(driver.deleteWorkspace(name)), never);
    same("the second time", await codeOf(driver.deleteWorkspace(name)), never);
  },
);

check(
  "DC-101",
  "SHOULD",
  "CreateSandbox needs no EnsureWorkspace before it",
  {
    source: "gateway 0.0.112, provider.rs:2229: it ensures a workspace for credentials, never for a sandbox",
    harm: "Sandboxes can be created in the first workspace, and in no other.",
  },
  async (trial) => {
    const box = await trial.create(trial.sandbox({}, { workspace: workspace() }));
    same("the id", (await box.get()).id, box.id);
  },
);

check(
  "DC-102",
  "SHOULD",
  "EnsureWorkspace and DeleteWorkspace answer a request without a name, and do not fail over it",
  {
    source: "Kubernetes driver 0.0.112, grpc.rs:184: INVALID_ARGUMENT; drivers without namespaces accept it",
    harm: "A broken request is reported as a broken platform.",
  },
  async ({ driver }) => {
    const answers = await Promise.all([
      codeOf(driver.ensureWorkspace("")),
      codeOf(driver.deleteWorkspace("")),
    ]);
    for (const answer of answers)
      holds(["OK", "INVALID_ARGUMENT", "UNIMPLEMENTED"].includes(answer), "a verdict on the name", answer);
  },
);

check(
  "DC-142",
  "MUST",
  "DeleteWorkspace does not touch the sandboxes of other workspaces",
  {
    source: "contract, DeleteWorkspace",
    harm: "Whoever deletes one team's workspace ends what the others run.",
  },
  async (trial) => {
    const [mine, theirs] = [workspace(), workspace()];
    const box = await trial.running(trial.sandbox({}, { workspace: mine }));
    await codeOf(trial.driver.ensureWorkspace(theirs));
    await codeOf(trial.driver.deleteWorkspace(theirs));
    const seen = await box.get();
    holds(isUp(seen), "a sandbox that is up", seen.status);
  },
);
