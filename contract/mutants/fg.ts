// SPDX-License-Identifier: Apache-2.0

/** Drivers that stop, start or delete wrongly. */
import type { Interceptors, RawCall } from "../../keeper/tap.ts";
import { isStopped, type Ref, type Snapshot } from "../driver.ts";
import { mutant, refusal } from "../mutant.ts";

type Ask = RawCall["ask"];

/** What the driver has under this id. @throws its own NOT_FOUND */
const find = async (ask: Ask, sandbox_id: string): Promise<Snapshot> =>
  (await ask("GetSandbox", { sandbox_id })).sandbox!;

const ifThere = (ask: Ask, sandbox_id: string): Promise<Snapshot | undefined> =>
  find(ask, sandbox_id).catch(() => undefined);

/** The id of the first sandbox of that name; empty if there is none. */
const idOf = async (ask: Ask, name: string): Promise<string> =>
  (await ask("ListSandboxes", {})).sandboxes.find((sandbox) => sandbox.name === name)?.id ?? "";

/** Refuses one more call than `most` at a time for the same `key` of a request. */
function atMost(most: number, key: (request: { sandbox_id: string }) => string) {
  const underWay = new Map<string, number>();
  return async <Answer>(request: { sandbox_id: string }, pass: () => Promise<Answer>): Promise<Answer> => {
    const mine = key(request);
    const before = underWay.get(mine) ?? 0;
    if (before >= most) throw refusal("ABORTED");
    underWay.set(mine, before + 1);
    return pass().finally(() => underWay.set(mine, underWay.get(mine)! - 1));
  };
}

// F StopSandbox and StartSandbox

mutant("StopSandbox is OK for an id that it does not know", ["DC-10", "DC-55", "DC-66", "DC-162"], {
  StopSandbox: ({ sandbox_id }, pass) =>
    pass().catch((error: unknown) => {
      if (!sandbox_id) throw error;
      return {};
    }),
});

mutant("StartSandbox is OK for an id that it does not know", ["DC-56", "DC-66", "DC-162"], {
  StartSandbox: ({ sandbox_id }, pass) =>
    pass().catch((error: unknown) => {
      if (!sandbox_id) throw error;
      return {};
    }),
});

mutant("StopSandbox refuses a sandbox that is stopped", ["DC-57", "DC-150"], {
  StopSandbox: async ({ sandbox_id }, pass, { ask }) => {
    const before = await find(ask, sandbox_id);
    if (isStopped(before)) throw refusal("FAILED_PRECONDITION");
    return pass();
  },
});

mutant("StartSandbox restarts a running sandbox", ["DC-58"], {
  StartSandbox: async (request, pass, { ask }) => {
    await ask("StopSandbox", request);
    return pass();
  },
});

mutant("StartSandbox refuses a running sandbox", ["DC-58"], {
  StartSandbox: async ({ sandbox_id }, pass, { ask }) => {
    if (!isStopped(await find(ask, sandbox_id))) throw refusal("FAILED_PRECONDITION");
    return pass();
  },
});

mutant(
  "StopSandbox answers at once, and stops when somebody asks for the sandbox next",
  [
    "DC-59",
    "DC-60",
    "DC-63",
    "DC-64",
    "DC-66",
    "DC-67",
    "DC-80",
    "DC-82",
    "DC-150",
    "DC-151",
    "DC-152",
    "DC-180",
  ],
  () => {
    const later = new Map<string, () => Promise<unknown>>();
    return {
      StopSandbox: async ({ sandbox_id }, pass, { ask }) => {
        await find(ask, sandbox_id);
        later.set(sandbox_id, pass);
        return {};
      },
      GetSandbox: async ({ sandbox_id }, pass) => {
        await later.get(sandbox_id)?.();
        later.delete(sandbox_id);
        return pass();
      },
    };
  },
);

mutant(
  "StopSandbox stops nothing",
  [
    "DC-57",
    "DC-59",
    "DC-60",
    "DC-61",
    "DC-62",
    "DC-63",
    "DC-64",
    "DC-66",
    "DC-67",
    "DC-68",
    "DC-82",
    "DC-151",
    "DC-152",
    "DC-180",
  ],
  {
    StopSandbox: async ({ sandbox_id }, _, { ask }) => {
      await find(ask, sandbox_id);
      return {};
    },
  },
);

mutant(
  "StartSandbox starts nothing",
  [
    "DC-60",
    "DC-62",
    "DC-82",
    "DC-84",
    "DC-91",
    "DC-95",
    "DC-98",
    "DC-150",
    "DC-151",
    "DC-175",
    "DC-176",
    "DC-177",
    "DC-178",
  ],
  {
    StartSandbox: async ({ sandbox_id }, _, { ask }) => {
      await find(ask, sandbox_id);
      return {};
    },
  },
);

mutant("StartSandbox makes a stopped sandbox anew", ["DC-60", "DC-178"], {
  StartSandbox: async (request, pass, { ask }) => {
    const before = await find(ask, request.sandbox_id);
    if (!isStopped(before)) return pass();
    const { id, name, workspace } = before;
    await ask("DeleteSandbox", request);
    await ask("CreateSandbox", { sandbox: { id, name, workspace, spec: { sandbox_token: "anew" } } });
    return pass();
  },
});

mutant("ListSandboxes hides stopped sandboxes", ["DC-49", "DC-60", "DC-61"], {
  ListSandboxes: async (_, pass) => ({
    sandboxes: (await pass()).sandboxes.filter((sandbox) => !isStopped(sandbox)),
  }),
});

mutant("A stopped sandbox has a reason that no gateway knows", ["DC-57", "DC-61", "DC-68", "DC-176"], {
  GetSandbox: async (_, pass) => {
    const { sandbox } = await pass();
    for (const condition of sandbox!.status!.conditions)
      condition.reason = condition.reason.replace("ContainerExited", "Halted");
    return { sandbox };
  },
});

mutant("A stopped sandbox is listed as running", ["DC-61", "DC-93"], {
  ListSandboxes: async (_, pass) => {
    const { sandboxes } = await pass();
    for (const sandbox of sandboxes.filter(isStopped)) sandbox.status!.conditions[0]!.status = "True";
    return { sandboxes };
  },
});

mutant("WatchSandboxes reports the end of the last run while StartSandbox runs", ["DC-62"], () => {
  const again = new Map<string, () => void>();
  return {
    WatchSandboxes: (watch) => (event) => {
      const snapshot = event.sandbox?.sandbox;
      if (snapshot && isStopped(snapshot)) again.set(snapshot.id, () => watch.send(event));
      watch.send(event);
    },
    StartSandbox: async ({ sandbox_id }, pass) => {
      again.get(sandbox_id)?.();
      return pass();
    },
  };
});

mutant("StopSandbox stops eight sandboxes at a time, and refuses the others", ["DC-10", "DC-63"], () => ({
  StopSandbox: atMost(8, () => "all"),
}));

mutant("StopSandbox refuses a sandbox that it is just stopping", ["DC-64"], () => ({
  StopSandbox: atMost(1, ({ sandbox_id }) => sandbox_id),
}));

mutant("StopSandbox and StartSandbox look for a sandbox without an id", ["DC-65"], {
  StopSandbox: ({ sandbox_id, ...rest }, pass) => pass({ ...rest, sandbox_id: sandbox_id || "none" }),
  StartSandbox: ({ sandbox_id, ...rest }, pass) => pass({ ...rest, sandbox_id: sandbox_id || "none" }),
});

mutant("StopSandbox falls back to the name", ["DC-66"], {
  StopSandbox: byName,
});

mutant("StartSandbox falls back to the name", ["DC-66"], {
  StartSandbox: byName,
});

type Named = { sandbox_id: string; sandbox_name: string };

async function byName<Answer>(
  { sandbox_name }: Named,
  pass: (request?: Named) => Promise<Answer>,
  { ask }: RawCall,
): Promise<Answer> {
  return pass().catch(async (error: unknown) => {
    const sandbox_id = await idOf(ask, sandbox_name);
    if (!sandbox_id) throw error;
    return pass({ sandbox_id, sandbox_name });
  });
}

mutant("StartSandbox refuses a sandbox whose workload was killed", ["DC-150"], {
  StartSandbox: async ({ sandbox_id }, pass, { ask }) => {
    const { conditions } = (await find(ask, sandbox_id)).status!;
    if (conditions.some(({ message }) => message.includes("137"))) throw refusal("FAILED_PRECONDITION");
    return pass();
  },
});

mutant("StopSandbox and StartSandbox want the name as well", ["DC-151"], {
  StopSandbox: wantsName,
  StartSandbox: wantsName,
});

async function wantsName<Answer>(
  { sandbox_id, sandbox_name }: Named,
  pass: () => Promise<Answer>,
  { ask }: RawCall,
): Promise<Answer> {
  const { name } = await find(ask, sandbox_id);
  if (name !== sandbox_name) throw refusal("NOT_FOUND");
  return pass();
}

// G DeleteSandbox

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

mutant("CreateSandbox refuses what has failed before", ["DC-160"], () => {
  const failed = new Set<string>();
  return {
    CreateSandbox: async ({ sandbox }, pass) => {
      const id = sandbox?.id ?? "";
      if (failed.has(id)) throw refusal("ALREADY_EXISTS");
      failed.add(id);
      const answer = await pass();
      failed.delete(id);
      return answer;
    },
  };
});

mutant("The name of a deleted sandbox stays taken", ["DC-141"], () => {
  const taken = new Map<string, string>();
  return {
    CreateSandbox: async ({ sandbox }, pass) => {
      const { id = "", name = "", workspace = "" } = sandbox ?? {};
      const full = `${workspace}/${name}`;
      if ((taken.get(full) ?? id) !== id) throw refusal("ALREADY_EXISTS");
      taken.set(full, id);
      return pass();
    },
  };
});
