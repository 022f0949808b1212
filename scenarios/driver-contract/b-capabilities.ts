// SPDX-License-Identifier: Apache-2.0

/** What a gateway asks a driver once, when it starts: who it is, and where it must listen for its sandboxes. */
import { isIP } from "node:net";
import { group } from "../../harness/conformance/check.ts";
import { holds, Refused, same } from "../../harness/conformance/finding.ts";
import type { Trial } from "../../harness/conformance/trial.ts";
import type { GatewayListenerRequirement__Output as Requirement } from "../../proto/v0.0/types/openshell/compute/v1/GatewayListenerRequirement.ts";

const check = group("B Capabilities and listeners");

check(
  "DC-12",
  "MUST",
  "GetCapabilities is answered within 3 s",
  {
    source: "gateway 0.0.112, compute/mod.rs:600",
    harm: "The gateway does not start: it waits for the answer without a deadline, and exits on an error.",
  },
  async ({ driver }) => {
    await driver.getCapabilities(3_000);
  },
);

check(
  "DC-13",
  "SHOULD",
  "The driver has a name and a version, and says the same of itself each time",
  {
    source: "Podman driver 0.0.112, driver.rs:469; Docker, VM and Kubernetes drivers do the same",
    harm: "Nobody can tell from a gateway's log or its status which driver made a sandbox.",
  },
  async (trial) => {
    const first = await trial.driver.getCapabilities();
    holds(first.driver_name !== "", "a driver_name", first);
    holds(first.driver_version !== "", "a driver_version", first);
    same("the answer on another connection", await trial.connect().getCapabilities(), first);
  },
);

check(
  "DC-16",
  "MUST",
  "GetGatewayListenerRequirements answers OK, or UNIMPLEMENTED",
  {
    source: "gateway 0.0.112, compute/mod.rs:619",
    harm: "The gateway does not start: every other answer ends it.",
  },
  async ({ driver }) => {
    const answer = await driver.getListenerRequirements().catch((error: unknown) => error);
    if (answer instanceof Refused) same("the refusal", answer.code, "UNIMPLEMENTED");
    else if (answer instanceof Error) throw answer;
  },
);

check(
  "DC-17",
  "MUST",
  "Every listener requirement names an address that a gateway can listen on, with the gateway's port",
  {
    source: "gateway 0.0.112, compute/mod.rs:631 and gateway_listener.rs:204",
    harm: "The gateway does not start: it exits on a requirement that it cannot meet.",
  },
  async (trial) => {
    for (const requirement of await requirements(trial)) {
      holds(requirement.selector !== undefined, "a selector", requirement);
      if (requirement.selector === "exact_bind_address") listenable(requirement.exact_bind_address!, trial);
    }
  },
);

check(
  "DC-18",
  "SHOULD",
  "Every listener requirement says its reason",
  {
    source: "contract, GatewayListenerRequirement",
    harm: "Nobody learns why the gateway listens on one more address.",
  },
  async (trial) => {
    for (const { reason } of await requirements(trial))
      holds(reason.trim() !== "", "a reason", "an empty one");
  },
);

/** What the driver requires; skips when that is nothing. */
async function requirements(trial: Trial): Promise<Requirement[]> {
  const { requirements } = await trial.driver.getListenerRequirements().catch((error: unknown) => {
    if (error instanceof Refused && error.code === "UNIMPLEMENTED") return { requirements: [] };
    throw error;
  });
  return requirements.length > 0 ? requirements : trial.skip("the driver requires no listener");
}

/** @throws Violation unless a gateway takes it: ip:port as Rust reads it, one host's address, the gateway's port. */
function listenable(address: string, { subject }: Trial): void {
  const [, v6, v4, port = ""] = /^(?:\[([\da-f:.]+)\]|([\d.]+)):(\d{1,5})$/i.exec(address) ?? [];
  const ip = v6 ?? v4 ?? "";
  const isWhole = isIP(ip) === (v6 ? 6 : 4) && Number(port) > 0 && Number(port) < 65_536;
  holds(isWhole, "an address such as 10.89.0.1:8080 or [fd00::1]:8080", address);
  holds(!/^(0\.0\.0\.0|[0:.]+)$/.test(ip), "an address that is no wildcard", address);
  holds(!/^(22[4-9]|23\d)\.|^ff/i.test(ip), "an address that is no multicast address", address);
  // Only a gateway's own driver knows its port.
  if (subject.owned) same("its port", port, new URL(subject.owned.stack.endpoint).port);
}
