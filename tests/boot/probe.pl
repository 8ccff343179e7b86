# Run as root in a guest: tries to reach two services on the host's loopback in every way there is, then echoes datagrams.
# usage: probe.pl TCP-PORT UDP-PORT BUSYBOX
use strict;
use Errno;
use IO::Select;
use IO::Socket::INET;
use Socket;
$| = 1;
my ($tcp, $udp, $busybox) = @ARGV;

sub try_both {
    my ($host) = @_;
    my $stream = IO::Socket::INET->new(PeerAddr => $host, PeerPort => $tcp, Timeout => 2);
    my $greeting = $stream ? <$stream> : $!{ECONNREFUSED} ? "refused\n" : "nothing\n";
    print "tcp $host $greeting";
    my $socket = IO::Socket::INET->new(Proto => "udp", Broadcast => 1) or die;
    my $answer = "nothing\n";
    if ($socket->send("x", 0, pack_sockaddr_in($udp, inet_aton($host))) && IO::Select->new($socket)->can_read(2)) {
        $socket->recv($answer, 100);
    }
    print "udp $host $answer";
}

try_both("10.0.2.2");
# Loopback addresses are not the guest's own any more, and go to the gateway.
system("$busybox ip addr del 127.0.0.1/8 dev lo; $busybox ip route flush table local proto kernel type local dev lo");
system("$busybox ip route add 127.0.0.0/8 via 10.0.2.2 src 10.0.2.15; echo 1 >/proc/sys/net/ipv4/conf/all/route_localnet");
try_both("127.0.0.1");

my $echo = IO::Socket::INET->new(Proto => "udp", LocalPort => 7) or die;
print "echo is up\n";
while ($echo->recv(my $word, 10000)) {
    $echo->send("guest: $word");
    last if $word =~ /^end/;
}
