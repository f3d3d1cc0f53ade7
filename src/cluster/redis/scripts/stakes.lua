-- What one node has of one group, and what changes for all when that does: `Truth` in src/cluster/truth.rs.
--
-- part:  version, occupied, records, reader, dropped
--                                             keys of the partition
--        publish                              PUBLISH, or SPUBLISH in a Redis Cluster
--        number, node_topics                  of the partition; what the names of nodes' topics begin with
-- group: name, topic, is_noted
--        version, holders, members            keys of the group
--        here                                 key of the node's members in it
--
-- members: a hash, `<version of joining> <number of nodes> <info>`
-- holders: a set of nodes; here: a sorted set, all scores 0, so that it is in the order of bytes

-- Of a partition. If nobody reads them, the oldest are dropped and counted, before Redis runs full: the 64 partitions
-- together take about a gigabyte then.
local RECORDS_MAX = 100000

-- Tells what changed; its version.
local function say(part, group, change, member, info)
  local version, time = next_version(part.version)
  local before = redis.call('GET', group.version) or '0'
  redis.call('SET', group.version, version)
  local text = before .. ' ' .. version .. ' ' .. change .. ' ' .. #member .. ' ' .. member .. info
  redis.call(part.publish, group.topic, '1T' .. text)
  if group.is_noted then
    local records = redis.call('XLEN', part.records) + 1
    redis.call('XADD', part.records, 'MAXLEN', '~', RECORDS_MAX, version .. '-0',
      'group', group.name, 'change', text, 'time', time)
    local dropped = records - redis.call('XLEN', part.records)
    if dropped > 0 then
      redis.call('INCRBY', part.dropped, dropped)
    end
    part.has_records = true
  end
  return version
end

-- Tells the reader of the partition's records, if there are new ones.
local function call_reader(part)
  local reader = part.has_records and redis.call('GET', part.reader)
  if reader then
    redis.call('PUBLISH', part.node_topics .. reader, '1R' .. part.number)
  end
end

local function hold(part, group, node)
  if redis.call('SADD', group.holders, node) == 1 and redis.call('SCARD', group.holders) == 1 then
    redis.call('ZADD', part.occupied, 0, group.name)
    say(part, group, 'o', '', '')
  end
end

local function add(part, group, member, info)
  if redis.call('ZADD', group.here, 'NX', 0, member) == 0 then
    return
  end
  local entry = redis.call('HGET', group.members, member)
  if entry then
    local joined, nodes, said = string.match(entry, '^(%d+) (%d+) (.*)$')
    redis.call('HSET', group.members, member, joined .. ' ' .. (nodes + 1) .. ' ' .. said)
  else
    local joined = say(part, group, 'a', member, info)
    redis.call('HSET', group.members, member, joined .. ' 1 ' .. info)
  end
end

local function remove(part, group, member)
  if redis.call('ZREM', group.here, member) == 0 then
    return
  end
  local entry = redis.call('HGET', group.members, member)
  if not entry then
    return
  end
  local joined, nodes, said = string.match(entry, '^(%d+) (%d+) (.*)$')
  if tonumber(nodes) > 1 then
    redis.call('HSET', group.members, member, joined .. ' ' .. (nodes - 1) .. ' ' .. said)
  else
    redis.call('HDEL', group.members, member)
    say(part, group, 'r', member, '')
  end
end

-- Takes at most `members_max` members from the node (-1: all of them), and when it has none, the group; how many it
-- took, and whether the group is done with.
local function leave(part, group, node, members_max)
  local members = redis.call('ZRANGE', group.here, 0, members_max < 0 and -1 or members_max - 1)
  for _, member in ipairs(members) do
    remove(part, group, member)
  end
  if redis.call('EXISTS', group.here) == 1 then
    return #members, false
  end
  if redis.call('SREM', group.holders, node) == 1 and redis.call('EXISTS', group.holders) == 0 then
    redis.call('ZREM', part.occupied, group.name)
    say(part, group, 'v', '', '')
  end
  return #members, true
end

-- The group's last transition. Of a group that nobody has anything of, nothing is kept.
local function last_version(group)
  local version = redis.call('GET', group.version) or '0'
  if redis.call('EXISTS', group.holders, group.members) == 0 then
    redis.call('DEL', group.version)
  end
  return version
end

