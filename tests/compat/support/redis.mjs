/** Redis servers on free ports: standalone, with sentinels, or as a Redis Cluster. */
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { startChild } from './child.mjs';
import { closeWith } from './resources.mjs';
import { eventually } from './stage.mjs';

const HOST = '127.0.0.1';
const START_TIMEOUT_MS = 10_000;
const COMMAND_TIMEOUT_MS = 60_000;
const ATTEMPTS_MAX = 20;
/** Below the ephemeral ports, so that the system gives none of them to another process while its server restarts. */
const PORTS = { first: 12_000, count: 18_000 };

class Redis {
  port;
  #directory;
  #args;
  #process;
  #output = '';

  /** `files` are written to the directory of the process, by name. `args` follow the port. */
  static async start(owner, { files = {}, args = [] } = {}) {
    const redis = new Redis();
    redis.#args = args;
    closeWith(owner, 'redis-server', () => redis.stop());
    redis.#directory = await mkdtemp(join(tmpdir(), 'pusherd-redis-'));
    for (const [name, text] of Object.entries(files)) await writeFile(join(redis.#directory, name), text);
    for (let attempt = 1; ; attempt += 1) {
      redis.port = PORTS.first + Math.floor(Math.random() * PORTS.count);
      try {
        await redis.restart();
        return redis;
      } catch (error) {
        if (attempt === ATTEMPTS_MAX || !redis.#output.includes('in use')) throw error;
      }
    }
  }

  /** Starts the process on its port. It has no data unless its arguments enable persistence. */
  async restart() {
    this.#output = '';
    const args = [...this.#args, '--port', String(this.port), '--bind', HOST];
    const child = startChild('redis-server', args, { cwd: this.#directory, stdio: ['ignore', 'pipe', 'pipe'] });
    this.#process = child;
    await new Promise((resolve, reject) => {
      const fail = (reason) => {
        child.kill('SIGKILL');
        reject(new Error(`redis-server ${reason}; it printed:\n${this.#output}`));
      };
      const timer = setTimeout(() => fail('did not start'), START_TIMEOUT_MS);
      const read = (chunk) => {
        this.#output += chunk;
        if (!/Ready to accept connections|\+monitor/.test(this.#output)) return;
        clearTimeout(timer);
        resolve();
      };
      child.stdout.setEncoding('utf8').on('data', read);
      child.stderr.setEncoding('utf8').on('data', read);
      child.once('error', (error) => fail(`did not start: ${error.message}`));
      child.exited.then(() => {
        clearTimeout(timer);
        fail('exited early');
      });
    });
  }

  get address() {
    return `${HOST}:${this.port}`;
  }

  /** Runs a command and returns the reply. */
  async command(...words) {
    return redisCli('-h', HOST, '-p', String(this.port), ...words);
  }

  async kill() {
    this.#process?.kill('SIGKILL');
    await this.#process?.exited;
  }

  /** Stops the process with SIGSTOP until it is resumed. Its connections stay open. */
  pause() {
    this.#process.kill('SIGSTOP');
  }

  resume() {
    this.#process.kill('SIGCONT');
  }

  async stop() {
    await this.kill();
    if (this.#directory) await rm(this.#directory, { recursive: true, force: true });
  }
}

/** Returns the output of `redis-cli`. An error reply fails the assertion. */
async function redisCli(...args) {
  const { stdout } = await promisify(execFile)('redis-cli', args, { encoding: 'utf8', timeout: COMMAND_TIMEOUT_MS });
  const reply = stdout.trim();
  assert.doesNotMatch(reply, /^(\(error\)|ERR|NOPERM|NOAUTH|READONLY|LOADING|CLUSTERDOWN)/, `redis-cli ${args.join(' ')}`);
  return reply;
}

const WITHOUT_PERSISTENCE = ['--save', '', '--appendonly', 'no'];

/** Starts one server without persistence. `settings` of the result is the section `[redis]` of a node. */
export async function startRedis(owner, args = []) {
  const redis = await Redis.start(owner, { args: [...WITHOUT_PERSISTENCE, ...args] });
  redis.settings = { host: HOST, port: redis.port };
  return redis;
}

/** Several servers of one deployment. */
class Servers {
  servers = [];
  #owner;

  constructor(owner) {
    this.#owner = owner;
  }

  async add(options) {
    const redis = await Redis.start(this.#owner, options);
    this.servers.push(redis);
    return redis;
  }

  /** The servers that are reachable and are masters now. */
  async masters() {
    const roles = await Promise.allSettled(this.servers.map((redis) => redis.command('ROLE')));
    return this.servers.filter((_, at) => roles[at].value?.startsWith('master'));
  }
}

const MASTER_NAME = 'main';

/** Starts a master with two replicas, and three sentinels that consider it down after a second. */
export async function startSentinels(owner) {
  const servers = new Servers(owner);
  const master = await servers.add({ args: WITHOUT_PERSISTENCE });
  const replica = { args: [...WITHOUT_PERSISTENCE, '--replicaof', `${HOST} ${master.port}`] };
  for (let count = 0; count < 2; count += 1) await servers.add(replica);
  const text = [
    `sentinel monitor ${MASTER_NAME} ${HOST} ${master.port} 2`,
    `sentinel down-after-milliseconds ${MASTER_NAME} 1000`,
    `sentinel failover-timeout ${MASTER_NAME} 5000`,
  ];
  const sentinel = { args: ['sentinel.conf', '--sentinel'], files: { 'sentinel.conf': text.join('\n') } };
  const sentinels = [];
  for (let count = 0; count < 3; count += 1) sentinels.push(await servers.add(sentinel));
  await eventually(async () => {
    for (const one of sentinels) assert.match(await one.command('SENTINEL', 'CKQUORUM', MASTER_NAME), /^OK 3/);
    assert.match(await master.command('INFO', 'replication'), /connected_slaves:2/);
    assert.match(await sentinels[0].command('SENTINEL', 'MASTER', MASTER_NAME), /num-slaves\n2/);
  }, 30_000);
  servers.settings = { sentinels: sentinels.map(({ address }) => address), sentinel_master: MASTER_NAME };
  servers.failOver = () => sentinels[0].command('SENTINEL', 'FAILOVER', MASTER_NAME);
  return servers;
}

/** Starts a Redis Cluster of three masters, each with a replica. */
export async function startRedisCluster(owner) {
  const servers = new Servers(owner);
  const args = [...WITHOUT_PERSISTENCE, '--cluster-enabled', 'yes', '--cluster-node-timeout', '2000'];
  for (let count = 0; count < 6; count += 1) await servers.add({ args });
  const nodes = servers.servers.map(({ address }) => address);
  await redisCli('--cluster', 'create', ...nodes, '--cluster-replicas', '1', '--cluster-yes');
  await eventually(async () => {
    for (const server of servers.servers) {
      assert.match(await server.command('CLUSTER', 'INFO'), /cluster_state:ok[^]*cluster_known_nodes:6/);
      assert.match(await server.command('INFO', 'replication'), /connected_slaves:1|master_link_status:up/);
    }
  }, 30_000);
  servers.settings = { nodes };
  servers.failOver = async () => {
    const masters = await servers.masters();
    const replica = servers.servers.find((server) => !masters.includes(server));
    await replica.command('CLUSTER', 'FAILOVER');
  };
  /** Moves slots from one master to another. */
  servers.reshard = async (slots) => {
    const [from, to] = await servers.masters();
    const [source, target] = [await from.command('CLUSTER', 'MYID'), await to.command('CLUSTER', 'MYID')];
    const which = ['--cluster-from', source, '--cluster-to', target, '--cluster-slots', String(slots)];
    await redisCli('--cluster', 'reshard', from.address, ...which, '--cluster-yes');
  };
  return servers;
}
