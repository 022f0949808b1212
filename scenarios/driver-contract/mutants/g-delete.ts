// SPDX-License-Identifier: Apache-2.0

/** Drivers that delete wrongly. */
import type { Interceptors } from "../../../harness/runtime/faults/tap.ts";
import { mutant, refusal } from "../../../harness/conformance/mutant.ts";
import { isStopped, type Ref, type Snapshot } from "../../../harness/conformance/driver.ts";
import { type Ask, find, idOf, atMost } from "./broken.ts";

const ifThere = (ask: Ask, sandbox_id: string): Promise<Snapshot | undefined> =>
  find(ask, sandbox_id).catch(() => undefined);

mutant("DeleteSandbox answers NOT_FOUND for an unknown id", ["DC-70", "DC-73", "DC-77", "DC-79", "DC-154"], {
  DeleteSandbox: async (_, pass) => {
    const { deleted } = await pass();
    if (!deleted) throw refusal("NOT_FOUND");
    return { deleted };
  },
});

mutant(
  "DeleteSandbox never says that there was one",
  ["DC-71", "DC-74", "DC-79", "DC-109", "DC-153", "DC-155", "DC-156", "DC-158", "DC-159"],
  {
    DeleteSandbox: async (_, pass) => {
      await pass();
      return { deleted: false };
    },
  },
);

mutant("DeleteSandbox always says that there was one", ["DC-70", "DC-73", "DC-77", "DC-79"], {
  DeleteSandbox: async (_, pass) => {
    await pass();
    return { deleted: true };
  },
});

mutant(
  "DeleteSandbox deletes nothing",
  [
    "DC-31",
    "DC-71",
    "DC-72",
    "DC-73",
    "DC-74",
    "DC-75",
    "DC-78",
    "DC-79",
    "DC-85",
    "DC-89",
    "DC-141",
    "DC-153",
    "DC-155",
    "DC-157",
    "DC-158",
    "DC-159",
    "DC-162",
    "DC-171",
    "DC-172",
    "DC-174",
  ],
  {
    DeleteSandbox: async ({ sandbox_id }, pass, { ask }) =>
      sandbox_id ? { deleted: (await ifThere(ask, sandbox_id)) !== undefined } : pass(),
  },
);

mutant("Only the first watch is told of a deletion", ["DC-71", "DC-85", "DC-172"], {
  WatchSandboxes: (watch) => (event) => {
    if (!event.deleted || watch.number === 1) watch.send(event);
  },
});

mutant(
  "No watch is told of a deletion",
  ["DC-71", "DC-72", "DC-73", "DC-83", "DC-85", "DC-89", "DC-171", "DC-172", "DC-174"],
  {
    WatchSandboxes: (watch) => (event) => {
      if (!event.deleted) watch.send(event);
    },
  },
);

/** Answers as if there still were every sandbox that a watch has told of. */
const remembering = (): Interceptors & { seen: Map<string, Snapshot> } => {
  const seen = new Map<string, Snapshot>();
  return {
    seen,
    WatchSandboxes: (watch) => (event) => {
      const snapshot = event.sandbox?.sandbox;
      if (snapshot) seen.set(snapshot.id, snapshot);
      watch.send(event);
    },
  };
};

mutant("GetSandbox has what a watch has told of, and forgets nothing", ["DC-72"], () => {
  const { seen, WatchSandboxes } = remembering();
  return {
    WatchSandboxes,
    GetSandbox: ({ sandbox_id }, pass) =>
      pass().catch((error: unknown) => {
        if (!seen.has(sandbox_id)) throw error;
        return { sandbox: seen.get(sandbox_id)! };
      }),
  };
});

mutant("ListSandboxes has what a watch has told of, and forgets nothing", ["DC-72"], () => {
  const { seen, WatchSandboxes } = remembering();
  return {
    WatchSandboxes,
    ListSandboxes: async (_, pass) => {
      const { sandboxes } = await pass();
      const ids = new Set(sandboxes.map(({ id }) => id));
      return { sandboxes: [...sandboxes, ...[...seen.values()].filter(({ id }) => !ids.has(id))] };
    },
  };
});

mutant("DeleteSandbox fails for what it has deleted already", ["DC-73"], () => {
  const done = new Set<string>();
  return {
    DeleteSandbox: async ({ sandbox_id }, pass) => {
      if (done.has(sandbox_id)) throw refusal("INTERNAL");
      const { deleted } = await pass();
      if (deleted) done.add(sandbox_id);
      return { deleted };
    },
  };
});

mutant("DeleteSandbox refuses a stopped sandbox", ["DC-74", "DC-89", "DC-153", "DC-156", "DC-172"], {
  DeleteSandbox: async ({ sandbox_id }, pass, { ask }) => {
    const before = await ifThere(ask, sandbox_id);
    if (before && isStopped(before)) throw refusal("FAILED_PRECONDITION");
    return pass();
  },
});

mutant("DeleteSandbox says of no id that there is none", ["DC-76"], {
  DeleteSandbox: async ({ sandbox_id }, pass) => (sandbox_id ? pass() : { deleted: false }),
});

mutant("DeleteSandbox falls back to the name", ["DC-77"], {
  DeleteSandbox: async ({ sandbox_name }, pass, { ask }) => {
    const { deleted } = await pass();
    const sandbox_id = deleted ? "" : await idOf(ask, sandbox_name);
    return sandbox_id ? pass({ sandbox_id, sandbox_name }) : { deleted };
  },
});

mutant("DeleteSandbox refuses a sandbox that it is just deleting", ["DC-79"], () => ({
  DeleteSandbox: atMost(1, ({ sandbox_id }) => sandbox_id),
}));

mutant("DeleteSandbox refuses a sandbox whose workload was killed", ["DC-153"], {
  DeleteSandbox: async ({ sandbox_id }, pass, { ask }) => {
    const before = await ifThere(ask, sandbox_id);
    const killed = before?.status?.conditions.some(({ message }) => message.includes("137"));
    if (killed) throw refusal("FAILED_PRECONDITION");
    return pass();
  },
});

mutant("DeleteSandbox wants the name as well", ["DC-155"], {
  DeleteSandbox: async ({ sandbox_id, sandbox_name }, pass, { ask }) => {
    const before = await ifThere(ask, sandbox_id);
    return before && before.name !== sandbox_name ? { deleted: false } : pass();
  },
});

/** The ids of all sandboxes that are called like this one, for a driver that shortens ids or searches for names. */
const alike = async (ask: Ask, { id, name }: Ref): Promise<string[]> => {
  const { sandboxes } = await ask("ListSandboxes", {});
  const like = (other: Ref) => other.id.slice(0, 12) === id.slice(0, 12) || other.name.startsWith(`${name}-`);
  return sandboxes.filter(like).map((other) => other.id);
};

mutant("DeleteSandbox deletes all that is called alike", ["DC-156"], {
  DeleteSandbox: async ({ sandbox_id, sandbox_name }, pass, { ask }) => {
    const others = await alike(ask, { id: sandbox_id, name: sandbox_name });
    const answer = await pass();
    for (const id of others) await pass({ sandbox_id: id, sandbox_name });
    return answer;
  },
});

mutant("StopSandbox stops all that is called alike", ["DC-156"], {
  StopSandbox: async ({ sandbox_id, sandbox_name }, pass, { ask }) => {
    for (const id of await alike(ask, { id: sandbox_id, name: sandbox_name }))
      await ask("StopSandbox", { sandbox_id: id, sandbox_name });
    return pass();
  },
});

mutant("DeleteSandbox knows of no sandbox that is being created", ["DC-157"], () => {
  const creating = new Set<string>();
  return {
    CreateSandbox: ({ sandbox }, pass) => {
      const id = sandbox?.id ?? "";
      creating.add(id);
      return pass().finally(() => creating.delete(id));
    },
    DeleteSandbox: async ({ sandbox_id }, pass) => (creating.has(sandbox_id) ? { deleted: false } : pass()),
  };
});

mutant("DeleteSandbox refuses a sandbox that is being stopped", ["DC-158"], () => {
  const stopping = new Set<string>();
  return {
    StopSandbox: ({ sandbox_id }, pass) => {
      stopping.add(sandbox_id);
      return pass().finally(() => stopping.delete(sandbox_id));
    },
    DeleteSandbox: async ({ sandbox_id }, pass) => {
      if (stopping.has(sandbox_id)) throw refusal("FAILED_PRECONDITION");
      return pass();
    },
  };
});

mutant("DeleteSandbox deletes four sandboxes at a time, and refuses the others", ["DC-159"], () => ({
  DeleteSandbox: atMost(4, () => "all"),
}));
