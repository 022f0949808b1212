// SPDX-License-Identifier: Apache-2.0

/** What a driver says of a sandbox before it is made: the gateway asks first, without a token. */
import { codeOf, holds, refuses, same } from "../../harness/conformance/finding.ts";
import { group } from "../../harness/conformance/check.ts";
import type { Trial } from "../../harness/conformance/trial.ts";
import type { DriverSandboxSpec } from "../../proto/v0.0/types/openshell/compute/v1/DriverSandboxSpec.ts";

const check = group("C ValidateSandboxCreate");

/** What ValidateSandboxCreate may say of a sandbox; anything else is about something else. */
const VERDICTS = ["OK", "INVALID_ARGUMENT", "FAILED_PRECONDITION"];

/** What no driver can make, whatever it runs on. */
const IMPOSSIBLE = {
  "a setting that no driver has": (): DriverSandboxSpec => ({
    template: { driver_config: { fields: { "no-such-setting": { boolValue: true } } } },
  }),
  "more GPUs than any machine has": (): DriverSandboxSpec => ({
    resource_requirements: { gpu: { count: 1_000 } },
  }),
};

/** A sandbox as it is validated: everything is known of it but its token. */
const withoutToken = (trial: Trial, spec: DriverSandboxSpec = {}) =>
  trial.sandbox({ ...spec, sandbox_token: "" });

check(
  "DC-19",
  "MUST",
  "ValidateSandboxCreate accepts a sandbox that CreateSandbox can make",
  {
    source: "gateway 0.0.112, compute/mod.rs:876",
    harm: "Nobody can create a sandbox: the gateway validates each one first, and passes the refusal on.",
  },
  async (trial) => {
    await trial.driver.validate(trial.sandbox());
  },
);

check(
  "DC-20",
  "MUST",
  "ValidateSandboxCreate makes nothing",
  {
    source: "contract, ValidateSandboxCreate",
    harm: "Sandboxes that users were refused, or never confirmed, run all the same, and nobody ever deletes them.",
  },
  async (trial) => {
    const sandbox = withoutToken(trial);
    await trial.forget(sandbox);
    await trial.driver.validate(sandbox);
    await refuses(trial.driver.get(sandbox), "NOT_FOUND");
    const listed = (await trial.driver.list()).filter(({ id }) => id === sandbox.id);
    same("the sandbox in ListSandboxes", listed, []);
    same("what there is of it", (await trial.subject.backend?.list?.(sandbox.id)) ?? [], []);
  },
);

check(
  "DC-21",
  "MUST",
  "ValidateSandboxCreate accepts a sandbox that has no token yet",
  {
    source: "gateway 0.0.112, grpc/sandbox.rs:342",
    harm: "Nobody can create a sandbox: the gateway makes the token only after it has validated.",
  },
  async (trial) => {
    await trial.driver.validate(withoutToken(trial));
  },
);

check(
  "DC-22",
  "SHOULD",
  "ValidateSandboxCreate answers INVALID_ARGUMENT to a request without a sandbox",
  {
    source: "Podman driver 0.0.112, grpc.rs:173; Docker, VM and Kubernetes drivers do the same",
    harm: "A broken caller is told that the driver is broken, or that its sandbox is fine.",
  },
  async ({ driver }) => {
    await refuses(driver.validate(null), "INVALID_ARGUMENT");
  },
);

check(
  "DC-23",
  "SHOULD",
  "ValidateSandboxCreate answers INVALID_ARGUMENT to a driver_config field that the driver does not know",
  {
    source: "Podman driver 0.0.112, container.rs:85; Docker, VM and Kubernetes drivers do the same",
    harm: "A mistyped setting is ignored: users get another sandbox than they asked for, and are not told.",
  },
  async (trial) => {
    const unknown = IMPOSSIBLE["a setting that no driver has"]();
    const refused = await refuses(trial.driver.validate(withoutToken(trial, unknown)), "INVALID_ARGUMENT");
    holds(refused.details.includes("no-such-setting"), "a message that names the field", refused.details);
  },
);

check(
  "DC-24",
  "SHOULD",
  "ValidateSandboxCreate answers FAILED_PRECONDITION to what is well-formed and cannot be had here",
  {
    source: "Podman driver 0.0.112, driver.rs:677; Docker and VM drivers do the same",
    harm: "Users cannot tell what they must write differently from what their operator must provide.",
  },
  async (trial) => {
    const greedy = IMPOSSIBLE["more GPUs than any machine has"]();
    const refused = await refuses(trial.driver.validate(withoutToken(trial, greedy)), "FAILED_PRECONDITION");
    holds(refused.details !== "", "a message for the user", "none");
  },
);

check(
  "DC-145",
  "SHOULD",
  "A driver that has no agent socket to give answers FAILED_PRECONDITION to whoever asks for one",
  {
    source: "Docker driver 0.0.112, lib.rs:542; VM driver does the same, and the Kubernetes driver gives it",
    harm: "Users ask for a socket of their agent's, are told that all is well, and find none in the sandbox.",
  },
  async (trial) => {
    const path = `/tmp/${crypto.randomUUID()}.sock`;
    const spec = { template: { agent_socket_path: path } };
    const validated = await codeOf(trial.driver.validate(withoutToken(trial, spec)));
    if (validated !== "OK") return same("ValidateSandboxCreate", validated, "FAILED_PRECONDITION");
    trial.backend("inspect");
    const box = await trial.running(trial.sandbox(spec));
    const told = JSON.stringify([await box.given(), await box.workload()]);
    holds(
      told.includes(path),
      "FAILED_PRECONDITION, or the socket in what the workload was given",
      "neither",
    );
  },
);

check(
  "DC-25",
  "SHOULD",
  "CreateSandbox refuses what ValidateSandboxCreate refuses, with the same code",
  {
    source: "Podman driver 0.0.112, driver.rs:713; Docker driver does the same",
    harm: "What the driver cannot do is made all the same when something changes between the two calls.",
  },
  async (trial) => {
    const compare = async ([what, spec]: [string, () => DriverSandboxSpec]) => {
      const sandbox = trial.sandbox(spec());
      const validated = await codeOf(trial.driver.validate(sandbox));
      if (validated === "OK") return false;
      await trial.forget(sandbox);
      same(`CreateSandbox of ${what}`, await codeOf(trial.driver.create(sandbox)), validated);
      return true;
    };
    const refused = await Promise.all(Object.entries(IMPOSSIBLE).map(compare));
    if (!refused.includes(true)) trial.skip("the driver refuses nothing that can be asked of it here");
  },
);

check(
  "DC-134",
  "MUST",
  "ValidateSandboxCreate judges a request of 1 MiB",
  {
    source:
      "gateway 0.0.112, grpc/validation.rs:39 and :376: environments, command and labels of 256 KiB and more",
    harm: "Sandboxes that the gateway lets through fail with an error of the transport, which names no cause.",
  },
  async (trial) => {
    const entries = (count: number) => Array.from({ length: count }, (_, n) => [`K${n}`, "x".repeat(8_000)]);
    const environment = Object.fromEntries(entries(32));
    const template = { environment, labels: Object.fromEntries(entries(64)) };
    const judged = await codeOf(trial.driver.validate(trial.sandbox({ environment, template })));
    holds(VERDICTS.includes(judged), "a verdict on the sandbox", judged);
  },
);

check(
  "DC-137",
  "SHOULD",
  "ValidateSandboxCreate judges a sandbox without a spec",
  {
    source: "Docker driver 0.0.112, lib.rs:509; Podman driver takes its defaults",
    harm: "One odd request ends the driver, or is answered with an error that says nothing.",
  },
  async (trial) => {
    const judged = await codeOf(trial.driver.validate({ ...trial.sandbox(), spec: null }));
    holds(VERDICTS.includes(judged), "a verdict on the sandbox", judged);
  },
);
