-- Declares a node dead in one partition and removes some of its state there. Returns whether there is more (1 or 0).
--
-- KEYS: version, sequences, expired, owned, occupied, records, reader, dropped of the partition (and the node). The keys of
--       the node's state are built here; they have the partition's hash tag, so they are in its slot.
-- ARGV: publish, number of the partition, node_topics, prefix of the partition's keys, node
local GROUPS_MAX, MEMBERS_MAX = 100, 1000
-- How long updates of the node are rejected, in seconds. Later ones are prevented by its lease, which has expired.
local EXPIRED_SECS = 3600

local part = {
  version = KEYS[1], occupied = KEYS[5], records = KEYS[6], reader = KEYS[7],
  dropped = KEYS[8],
  publish = ARGV[1], number = ARGV[2], node_topics = ARGV[3],
}
local sequences, expired, owned = KEYS[2], KEYS[3], KEYS[4]
local prefix, node = ARGV[4], ARGV[5]

redis.call('SET', expired, 1, 'EX', EXPIRED_SECS)
local items = redis.call('ZRANGE', owned, 0, GROUPS_MAX - 1, 'WITHSCORES')
local members_left = MEMBERS_MAX
for at = 1, #items, 2 do
  if members_left <= 0 then
    break
  end
  local item = items[at]
  local name = string.sub(item, 2)
  if string.sub(item, 1, 1) == 'g' then
    local group = {
      name = name, topic = prefix .. 't:' .. name, is_recorded = items[at + 1] == '1',
      holders = prefix .. 'h:' .. name, version = prefix .. 'x:' .. name, members = prefix .. 'm:' .. name,
      present = prefix .. 's:' .. node .. ':' .. name,
    }
    local removed, is_done = leave(part, group, node, members_left)
    members_left = members_left - removed
    last_version(group)
    if is_done then
      redis.call('ZREM', owned, item)
    end
  else
    redis.call('HDEL', prefix .. 'q:' .. name, node)
    redis.call('ZREM', owned, item)
  end
end
announce_records(part)

if redis.call('EXISTS', owned) == 1 then
  return 1
end
redis.call('HDEL', sequences, node)
return 0
