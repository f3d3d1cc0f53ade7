-- Renews a node's lease. Returns the nodes with a valid lease and those with an expired one; false if the node has no
-- lease or it has expired, even if no node has noticed yet.
--
-- KEYS: leases, a sorted set by their ends in milliseconds
-- ARGV: node, is_new (1 or 0), duration in milliseconds
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if ARGV[2] == '0' then
  local ends = redis.call('ZSCORE', KEYS[1], ARGV[1])
  if not ends or tonumber(ends) <= now then
    return false
  end
end
local text = string.format('%.0f', now)
redis.call('ZADD', KEYS[1], string.format('%.0f', now + ARGV[3]), ARGV[1])
return { redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. text, '+inf'), redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', text) }
