// SPDX-License-Identifier: Apache-2.0

/** What a driver says of its sandboxes when it is asked. */
import { group, holds, refuses, same } from "../../contract/check.ts";
import { agree } from "../../contract/trial.ts";

const check = group("E Get and List");

check(
  "DC-45",
  "MUST",
  "GetSandbox answers NOT_FOUND for an id that it does not know",
  {
    source: "gateway 0.0.112, compute/mod.rs:3312",
    harm: "Sandboxes that are gone stay in users' lists for ever, and their deletion fails.",
  },
  async ({ driver }) => {
    await refuses(driver.get({ id: crypto.randomUUID(), name: "nobody" }), "NOT_FOUND");
  },
);

check(
  "DC-46",
  "MUST",
  "GetSandbox returns the sandbox whose id was asked for",
  {
    source: "gateway 0.0.112, compute/mod.rs:3301",
    harm: "The gateway stops reconciling: every sandbox keeps the phase that it had.",
  },
  async (trial) => {
    const [one, other] = [await trial.create(), await trial.create()];
    same("the id of the one", (await one.get()).id, one.id);
    same("the id of the other", (await other.get()).id, other.id);
  },
);

check(
  "DC-50",
  "MUST",
  "ListSandboxes and GetSandbox say the same of a sandbox",
  {
    source: "gateway 0.0.112, compute/mod.rs:3122",
    harm: "A sandbox changes its phase back and forth, depending on who looked last.",
  },
  async (trial) => {
    const box = await trial.running();
    const listed = await box.listed();
    holds(listed !== undefined, "the sandbox in ListSandboxes", "it is not there");
    agree("the listed snapshot", listed, await box.get());
  },
);
