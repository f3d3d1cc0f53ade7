-- Sets a node's share of a quota to what it wants, or to what is left. Returns the share.
--
-- KEYS: shares of the quota; sequences, expired, owned of the partition (and the node)
-- ARGV: node, wanted, max, quota
local shares, sequences, expired, owned = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local node, wanted, max, item = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), 'q' .. ARGV[4]

if redis.call('EXISTS', expired) == 1 then
  -- A node whose lease has expired has no share. It asks again under its new id.
  return ARGV[2]
end
local own = tonumber(redis.call('HGET', shares, node) or 0)
local share = wanted
if wanted > own then
  local all = 0
  for _, value in ipairs(redis.call('HVALS', shares)) do
    all = all + tonumber(value)
  end
  share = math.max(own, math.min(wanted, max - (all - own)))
end
if share > 0 then
  redis.call('HSET', shares, node, string.format('%.0f', share))
  redis.call('ZADD', owned, 2, item)
  -- Makes the node known in the partition, so that it is reaped.
  redis.call('HSETNX', sequences, node, 0)
else
  redis.call('HDEL', shares, node)
  redis.call('ZREM', owned, item)
end
return string.format('%.0f', share)
